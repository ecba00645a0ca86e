"""Which equation do optimisers follow? The table and the figure of the page on them."""
