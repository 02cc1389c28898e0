"""What is searched: tables, costs, request, and the plain definition of the best."""
