"""Where prompt tables come from: packs, files, fetched sets, the built-in corpus."""
