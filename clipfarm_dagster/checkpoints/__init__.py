"""Which model it is and where its files lie; what they hold is checked before it is loaded."""
