"""Building blocks that methods share: selection, polynomials, surgery, counters, models, training."""
