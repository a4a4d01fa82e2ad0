"""HTTP: one router per audience, one permission per route, one shape for errors."""
