"""Find videos and decode them into upright frames with timestamps: discover, plan, decode, isolate."""
