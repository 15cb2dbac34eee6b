"""A fixed input, embedded before a run writes: drift that no contract names is caught by what comes out."""
