"""From file names to upright frames with true times: discover, plan, decode, isolate."""
