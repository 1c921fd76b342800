"""Networks: functions of (parameters, input) to logits and named features."""
