"""Each sentence of a page that states a figure, held to the records it is of."""
