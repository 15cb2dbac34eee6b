"""What needs work, and why: metadata, raw objects and ledger, compared by columns. Never imports Dagster."""
