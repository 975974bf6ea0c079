"""The Datasets tab: a module for each of its views, and `show_*` modules that turn records into HTML and know nothing of Gradio."""
