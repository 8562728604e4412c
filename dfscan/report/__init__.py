"""Reports: row schema, writers, HTML page, Grad-CAM dumps and metadata."""
