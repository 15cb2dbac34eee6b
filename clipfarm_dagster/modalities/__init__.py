"""What is particular to video, audio and text: how bytes become a tensor, and a tensor a vector."""
