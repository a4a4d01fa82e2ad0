"""The only room that speaks SQL: tables, and functions over a connection, typed in and out."""
