"""What a run will cost, before it is launched: operations, memory, time and communication."""
