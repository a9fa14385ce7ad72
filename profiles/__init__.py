"""Data, no code: device peaks, recorded runs, cost curves; installs as `hspec_profiles`."""
