"""Published methods of distillation, each a student's config; see docs/distillation.md."""
