"""Pages: templates, a small style sheet, a vendored htmx; nothing is fetched from elsewhere."""
