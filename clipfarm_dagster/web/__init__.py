"""What ClipFarm serves on 127.0.0.1, and the guard in front of it. No data is read or written here."""
