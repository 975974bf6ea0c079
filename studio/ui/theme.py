"""The page's look: Gradio's own tokens in warm greys, ink for what one does, colour only for who speaks."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")

# Relative times stay true while the page is open.
HEAD = """
<meta name="description" content="Train, keep and chat with adapters on one shared base model">
<script>
setInterval(() => {
  for (const tag of document.querySelectorAll('time[data-at]')) {
    const s = Math.max(0, Date.now() / 1000 - tag.dataset.at);
    const text = s < 45 ? 'just now' : s < 3600 ? `${Math.max(1, Math.round(s / 60))} min ago`
      : s < 86400 ? `${Math.round(s / 3600)} h ago` : tag.textContent;
    if (text !== tag.textContent) tag.textContent = text;
  }
}, 20000);
</script>
"""


def make_theme() -> gr.themes.Base:
    """The theme. Fonts are the system's; nothing is fetched from outside."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.stone,
        secondary_hue=gr.themes.colors.stone,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=[gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")],
    )
    return theme.set(**_surfaces(), **_text(), **_controls())


def _surfaces() -> dict[str, str]:
    return {
        "body_background_fill": "*neutral_50",
        "body_background_fill_dark": "#131110",
        "background_fill_primary": "white",
        "background_fill_primary_dark": "#1d1a18",
        "background_fill_secondary": "*neutral_50",
        "background_fill_secondary_dark": "#161412",
        "block_background_fill": "transparent",
        "block_background_fill_dark": "transparent",
        "block_border_width": "0px",
        "block_shadow": "none",
        "block_padding": "0px",
        "border_color_primary": "*neutral_200",
        "border_color_primary_dark": "#38332f",
        "panel_background_fill": "white",
        "panel_background_fill_dark": "#1d1a18",
        "layout_gap": "16px",
    }


def _text() -> dict[str, str]:
    return {
        "body_text_color": "*neutral_900",
        "body_text_color_dark": "*neutral_100",
        "body_text_color_subdued": "*neutral_600",
        "body_text_color_subdued_dark": "*neutral_400",
        "block_label_text_color": "*neutral_800",
        "block_label_text_color_dark": "*neutral_200",
        "block_title_text_color": "*neutral_800",
        "block_title_text_color_dark": "*neutral_200",
        "block_title_text_weight": "550",
        "block_title_text_size": "*text_sm",
        "block_info_text_color": "*neutral_600",
        "block_info_text_color_dark": "*neutral_400",
        "input_placeholder_color": "*neutral_500",
        "input_placeholder_color_dark": "*neutral_400",
    }


def _controls() -> dict[str, str]:
    ink = {
        "button_primary_background_fill": "*neutral_900",
        "button_primary_background_fill_hover": "*neutral_700",
        "button_primary_text_color": "white",
        "button_primary_background_fill_dark": "*neutral_100",
        "button_primary_background_fill_hover_dark": "white",
        "button_primary_text_color_dark": "*neutral_900",
        "button_primary_border_color": "transparent",
        "button_primary_border_color_dark": "transparent",
    }
    plain = {
        "button_secondary_background_fill": "white",
        "button_secondary_background_fill_hover": "*neutral_100",
        "button_secondary_background_fill_dark": "#2a2623",
        "button_secondary_background_fill_hover_dark": "#38332f",
        "button_secondary_border_color": "*neutral_300",
        "button_secondary_border_color_dark": "#4a443f",
        "button_border_width": "1px",
        "button_large_text_size": "*text_md",
        "button_large_text_weight": "550",
        "button_large_padding": "8px 16px",
        "button_large_radius": "*radius_md",
        "button_cancel_background_fill": "#b42318",
        "button_cancel_background_fill_hover": "#912018",
        "button_cancel_text_color": "white",
        "button_cancel_background_fill_dark": "#b42318",
        "button_cancel_background_fill_hover_dark": "#912018",
    }
    inputs = {
        "input_background_fill": "white",
        "input_background_fill_dark": "#161412",
        "input_border_color": "*neutral_400",
        "input_border_color_dark": "#6b635c",
        "input_border_color_focus": "*neutral_900",
        "input_border_color_focus_dark": "*neutral_100",
        "input_border_width": "1px",
        "input_shadow": "none",
        "input_shadow_focus": "none",
        "checkbox_background_color_selected": "*neutral_900",
        "checkbox_background_color_selected_dark": "*neutral_500",
        "checkbox_border_color": "*neutral_500",
        "checkbox_border_color_dark": "*neutral_400",
        "checkbox_border_color_selected": "*neutral_900",
        "checkbox_border_color_selected_dark": "*neutral_100",
        "slider_color": "*neutral_900",
        "slider_color_dark": "*neutral_200",
    }
    return {**ink, **plain, **inputs}
