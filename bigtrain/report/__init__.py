"""Pages that people read: the report of a run, the funnel of a data build, curves as SVG."""
