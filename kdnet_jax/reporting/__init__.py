"""What a person sees: progress, figures and the HTML report."""
