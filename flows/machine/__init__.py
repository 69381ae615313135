"""What a run finds and takes of the machine: devices, memory, processes, leases."""
