"""The ground floor: settings, and errors that help."""
