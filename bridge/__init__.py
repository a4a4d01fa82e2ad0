"""receive → assemble → route → consent → infer → report → record → deliver."""
