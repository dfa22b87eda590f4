"""Looking at slides, annotations, tissue and patches before training: one HTML page. Nothing here decides anything.

`write` goes slide by slide: `collect` reads one, `slide_section` turns it into HTML; `page` puts the data set's figures
and `remarks` before them.
"""
