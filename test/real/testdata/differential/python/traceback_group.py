raise ExceptionGroup("g", [ValueError(1), TypeError("t"), ExceptionGroup("h", [OSError(2, "no")])])
