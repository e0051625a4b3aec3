"""From a run folder to one self-contained HTML page: statistics, figures, and the page itself."""
