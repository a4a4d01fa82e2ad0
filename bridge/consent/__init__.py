"""What a patient allowed: documents read, a request answered, nothing remembered.

Standard library only, so that an auditor can run the same decision again. ``ENGINE`` names the
rules; whoever changes an answer changes the name.
"""

from __future__ import annotations

ENGINE = "radseal-consent/1"
