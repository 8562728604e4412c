"""What people and spreadsheets get: row schema, writers, dumps, metadata."""
