"""dfscan: batch video forensics. Which videos show manipulated faces, and how sure is that?"""

__version__ = "0.1.0"
