"""One module a tab: `build` lays it out and returns its handles, `wire` binds events after all tabs exist."""
