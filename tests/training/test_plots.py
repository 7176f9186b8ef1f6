import io

import numpy as np

from lengthwise.training import figures


def drawn(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_predicted_against_true_states_its_error(rng):
    true = rng.lognormal(5, 1, 300)
    figure = figures.predicted_against_true(true, true + 10, note="test split")
    (note,) = [t for t in figure.axes[0].texts if "MAE" in t.get_text()]
    assert "MAE 10.0" in note.get_text()
    assert drawn(figure).startswith(b"\x89PNG")


def test_calibration_puts_true_quantiles_on_the_diagonal(rng):
    levels = np.array([0.1, 0.5, 0.9])
    true = rng.uniform(0, 1, 4000) * 1000
    right = np.tile(levels * 1000, (4000, 1))
    figure = figures.calibration(true, {"right": (levels, right), "low": (levels, right / 2)})
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["right"], levels, atol=0.03)
    np.testing.assert_allclose(lines["low"], levels / 2, atol=0.03)


def test_error_by_class_draws_a_bar_per_model_and_class():
    figure = figures.error_by_class(
        {"learned": {"chat": 50.0, "code": 80.0}, "class median": {"chat": 90.0, "code": 120.0}}
    )
    axes = figure.axes[0]
    assert sorted(bar.get_height() for bar in axes.patches) == [50, 80, 90, 120]
    assert texts(axes) == ["learned", "class median"]


def test_interval_width_names_each_class_with_its_median(rng):
    low = np.full(200, 10.0)
    classes = ["chat"] * 100 + ["code"] * 100
    high = np.where(np.array(classes) == "chat", 20.0, 50.0)
    figure = figures.interval_width(low, high, classes, level="80 %")
    assert texts(figure.axes[0]) == ["chat (median 2.0x)", "code (median 5.0x)"]
    assert drawn(figure)


def test_importances_are_drawn_largest_first():
    figure = figures.importances({"words": 0.5, "lists": 0.3, "code": 0.2}, most=2)
    bars = figure.axes[0].patches
    assert [round(bar.get_width()) for bar in bars] == [50, 30]
    assert drawn(figure)


def test_one_row_can_be_drawn():
    one = np.array([7.0])
    assert drawn(figures.predicted_against_true(one, one))
