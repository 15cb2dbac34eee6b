"""What a vector is: its contract, its file, and the hashes of what it was made from."""
