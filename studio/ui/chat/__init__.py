"""The parts of the Chat tab: each lays itself out with `build` and binds its events with `wire`."""
