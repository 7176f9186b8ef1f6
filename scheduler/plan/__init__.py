"""The steps of a plan: figures, forecast, selection, batch limit, search, slots taken back."""
