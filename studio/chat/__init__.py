"""The slot bank, the scheduler that owns the resident model, sampling, and the service that people talk to."""
