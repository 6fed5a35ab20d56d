"""DeepSpeed behind a narrow interface: topology, optimizer, schedule, step, fragments of state."""
