"""The queue's rules, and the worker that supervises one subprocess a job."""
