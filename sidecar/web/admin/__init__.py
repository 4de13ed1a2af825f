"""The admin port: metrics, figures, health, the stored answers, and the page that shows all of it."""
