"""Study, trial, outcome, claims, store and reports: what every method and engine stands on."""
