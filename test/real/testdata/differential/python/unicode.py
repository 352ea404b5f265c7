print("żółć 日本語 🐍 \u202e \x00 \x1b[1m")
