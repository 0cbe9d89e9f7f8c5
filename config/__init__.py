"""Settings: `settings` says what there is and the defaults, `loading` reads them from file, environment and flags."""
