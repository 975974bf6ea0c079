"""The Adapters tab: finding adapters, and the page of one."""
