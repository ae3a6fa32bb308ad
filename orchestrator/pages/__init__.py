"""What pages are made of: figures in one style, their captions and data, tables, and one HTML file of them."""
