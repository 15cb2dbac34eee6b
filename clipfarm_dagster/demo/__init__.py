"""Everything that the offline demonstration needs: a drawn corpus and seeded random checkpoints."""
