"""Times things in turn, so that whatever the machine does meanwhile meets all of them alike."""
