"""The engine on one machine: worker processes that prepare, threads that run the model."""
