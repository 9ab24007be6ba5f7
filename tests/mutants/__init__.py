"""Faults put into the library on purpose: would the tests see them?"""
