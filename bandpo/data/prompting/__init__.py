"""How a problem is put to a model: settings, texts around it, chat templates, control tokens."""
