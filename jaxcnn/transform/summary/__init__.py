"""`summarize`: what the convolutions and pools of a function cost and how they are computed."""
