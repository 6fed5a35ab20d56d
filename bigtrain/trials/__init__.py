"""Training that is started to learn something: replay, profile, verify-resume."""
